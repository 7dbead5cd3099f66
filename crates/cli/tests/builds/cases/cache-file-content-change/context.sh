echo one >a
