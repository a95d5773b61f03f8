"""What trainer and engine must do alike with a model, or answers are given to other inputs than were learnt."""
