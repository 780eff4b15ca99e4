"""Forms: fields as widgets."""
