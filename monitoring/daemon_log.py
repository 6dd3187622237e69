"""logs/daemon.log: rotated by size, and safe to look at in a terminal whatever a file is called."""

from __future__ import annotations

import logging
import logging.handlers
import sys

from config import LoggingConfig, Paths

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class PrintableFormatter(logging.Formatter):
    """Escapes what could move a cursor or forge a line: names, reasons and a worker's words are data."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n    ".join("".join(map(_printable, line)) for line in lines)


class LogFile(logging.handlers.RotatingFileHandler):
    """A log file that may fall silent, on a full disk for instance; standard error has every line as well."""

    _is_silent = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that lines are missing from the file, instead of a traceback for each."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_silent:
            self._is_silent = True
            sys.stderr.write(f"Cannot write {self.baseFilename}: {error.strerror}; lines will be missing\n")


def start_logging(paths: Paths, config: LoggingConfig) -> None:
    """Log to logs/daemon.log and to standard error."""
    handlers: list[logging.Handler] = [
        LogFile(paths.log_file, maxBytes=config.max_bytes, backupCount=config.backups, encoding="utf-8"),
        logging.StreamHandler(),
    ]
    for handler in handlers:
        handler.setFormatter(PrintableFormatter(LINE))
    logging.basicConfig(level=config.level, handlers=handlers, force=True)


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
