: >d/new
