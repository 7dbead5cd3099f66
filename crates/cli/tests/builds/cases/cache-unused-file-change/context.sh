echo one >a; echo x >other
