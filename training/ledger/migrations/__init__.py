"""The steps that bring an older ledger to the tables of today, run by alembic."""
