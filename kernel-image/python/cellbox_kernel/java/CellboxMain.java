package org.rapaio.jupyter.kernel.channels;

import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.logging.LogManager;
import org.rapaio.jupyter.kernel.MainApp;
import org.rapaio.jupyter.kernel.core.ConnectionProperties;
import org.rapaio.jupyter.kernel.core.Transform;

/** Starts the Java kernel; its one argument is the connection file. */
public final class CellboxMain {
    private CellboxMain() {}

    public static void main(String[] arguments) throws Exception {
        try (InputStream logging = CellboxMain.class.getResourceAsStream("/logging.properties")) {
            LogManager.getLogManager().readConfiguration(logging);
        }
        String connection = Files.readString(Path.of(arguments[0]));
        Channels channels = new Channels(Transform.fromJson(connection, ConnectionProperties.class));
        // Opens the sockets first and installs the handlers of requests afterwards.
        channels.connect(MainApp.kernel);
        LoopThread.begin();
        channels.joinUntilClose();
    }
}
