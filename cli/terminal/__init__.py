"""What a terminal shows: its width and colours, tables that fit it, examples, completion."""
