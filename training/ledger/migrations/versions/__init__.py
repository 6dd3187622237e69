"""One module for each revision of the ledger's tables; what was released is never changed."""
