"""Pictures of a graph of operations: layout, SVG, Graphviz text, and an HTML page. Knows nothing of Tensors."""
