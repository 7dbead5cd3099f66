echo other >a
