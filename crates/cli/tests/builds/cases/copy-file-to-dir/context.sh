echo a >a.txt; chmod 4755 a.txt
