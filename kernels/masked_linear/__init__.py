"""`masked_linear`, `masked_chain`: Linear layers under many masks."""
