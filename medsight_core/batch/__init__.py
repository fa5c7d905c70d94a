"""A whole archive and a list of questions: answers, masks and one table, on as many processes as there are.

What is done is remembered beside each answer, so that an interrupted run goes on, a repeated one does nothing, and a
changed question is asked again, by itself. A scan that cannot be read is a row of the table and no more.
"""
