"""The bundled example: a small trained AlexNet and the images it is swept on."""
