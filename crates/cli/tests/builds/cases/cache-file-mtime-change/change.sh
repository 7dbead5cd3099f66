touch -d @200 a
