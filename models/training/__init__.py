"""What trains a retriever, whatever its architecture: losses, and the gradient of a large batch."""
