"""Pictures: drawn by Gemini, checked, encoded as PNG, stored."""
