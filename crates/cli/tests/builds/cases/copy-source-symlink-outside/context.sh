ln -s ../../../../etc/passwd link
