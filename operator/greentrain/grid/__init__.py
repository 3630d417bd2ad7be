"""Where the grid's carbon intensity comes from: adapters behind one port, `grid.source.Source`.

Each source keeps its values in memory and answers for a zone, a basis and a moment; only `refresh` reads the disk. A
`grid.chain.Grid` asks the sources of the operator's settings in their order.
"""
