"""Monthly statements, and the verification of receipts and statements."""
