touch -- 'sp ace' 'uml-ü' '#hash' '-dash' 'q"uote' 'back\slash' 'new
line' '$dollar' '[br]'
