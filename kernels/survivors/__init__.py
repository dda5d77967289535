"""`rows_reading`, `columns_read`: what a mask leaves alive."""
