"""What everything stands on: errors, types, precision, random keys, small linear algebra, devices and compilation."""
