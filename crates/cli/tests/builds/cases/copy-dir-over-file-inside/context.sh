mkdir -p tree/etc/passwd; echo a >tree/etc/passwd/a
