"""Programs that use tdcompress."""
