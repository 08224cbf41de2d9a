-- Writers exclude each other here: of two that cancel the last publications of a clip, the second sees the first.
SELECT 1;
