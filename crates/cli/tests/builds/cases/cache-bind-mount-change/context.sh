echo one >a; echo x >b
