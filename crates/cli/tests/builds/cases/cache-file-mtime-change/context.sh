echo one >a; touch -d @100 a
