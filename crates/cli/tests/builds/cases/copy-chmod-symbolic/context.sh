mkdir tree; echo 1 >tree/file; echo 2 >tree/prog; chmod 755 tree/prog; chmod 644 tree/file; mkdir -m 700 tree/dir
