"""SYLLO: words hidden in syllable tiles; seeded puzzles whose replies can be judged without guessing."""
