"""Algorithms that take the examples in their order: one step an example or a block, or weights that fall with age."""
