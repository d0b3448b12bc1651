"""The paper's claims, measured small on `shapes`: each module measures one and tells what was found."""
