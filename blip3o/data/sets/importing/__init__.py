"""What `blip3o.data.sets.imported` reads: a folder or a table as a listing of items, and an item's picture and text.

- `items` (what a listing is) · `pictures` (bytes into what a shard holds) · `samples` (an item as a sample)
- `folders`, `local_files`, `captions`: a folder of pictures and the files next to them
- `tables`, `csv_rows`, `json_rows`, `table_rows`: a table's bytes into rows, and a row into an item
"""
