"""Credits: reservations, settlements, refunds, reconciliation, accounts and audits."""
