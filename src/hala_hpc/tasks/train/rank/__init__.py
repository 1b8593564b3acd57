"""The program of one rank of a training. Imports torch freely, so nothing but the program itself imports it."""
