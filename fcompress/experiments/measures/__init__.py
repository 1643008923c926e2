"""What recipes measure besides `analyze`: one file a measure."""
