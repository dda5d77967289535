"""What the report's script works on: data inline in the page, small pictures, single pages."""
