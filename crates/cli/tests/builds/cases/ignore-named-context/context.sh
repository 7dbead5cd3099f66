mkdir other; echo a >other/a; echo b >other/b; echo a >other/.dockerignore
