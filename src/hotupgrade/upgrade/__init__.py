"""The phases of an upgrade: takes plans and a target; keeps the ledger and the journal; rolls back."""
