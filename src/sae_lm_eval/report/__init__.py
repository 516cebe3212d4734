"""A comparison as text and pictures, from files alone: tables and prose, then figures, then the one writer."""
