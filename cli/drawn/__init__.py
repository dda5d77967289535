"""The verb that draws."""
