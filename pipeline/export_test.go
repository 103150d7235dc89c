package pipeline

// SetPath gives the pipeline's only peer this path, as control does when a link has ordered it. For tests outside of the package.
func SetPath(p *Pipeline, path *Path) error {
	return p.call(func() { p.control.controller.peers[0].path.Store(path) })
}
