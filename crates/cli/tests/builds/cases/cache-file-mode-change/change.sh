chmod 755 a
