"""What tests share: files, sites, models and children that they are tried on."""
