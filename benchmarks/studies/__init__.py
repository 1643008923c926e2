"""What single choices of the methods are worth."""
