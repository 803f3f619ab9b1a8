"""How rows become speed."""
