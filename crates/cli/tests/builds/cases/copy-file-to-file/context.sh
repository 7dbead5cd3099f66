echo a >a.txt; touch -d @100.5 a.txt; chmod 640 a.txt
