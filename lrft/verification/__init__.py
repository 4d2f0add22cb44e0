"""Does the merged model answer as the adapter does, and does a run keep its promises?"""
