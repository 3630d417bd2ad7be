"""What a pass writes down."""
