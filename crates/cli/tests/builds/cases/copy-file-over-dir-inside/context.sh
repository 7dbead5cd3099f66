mkdir tree; echo a >tree/srv
