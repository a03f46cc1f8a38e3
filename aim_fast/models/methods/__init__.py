"""Methods: what is put on a frozen trunk, and what of it trains."""
