"""The operators and methods of Tensor, one family a file. Each is a call of `apply` with a rule."""
