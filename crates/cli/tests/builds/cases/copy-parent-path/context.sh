echo a >a; mkdir dir
